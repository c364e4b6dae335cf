# Sourced by the other scripts: finds the checkout and its private environment, and makes what is missing.
#
#   IMAGEFS_ENV   directory of the environment (default: one per checkout under the XDG cache directory)
#
# shellcheck shell=bash
set -euo pipefail

here=$(readlink -f -- "${BASH_SOURCE[0]}")
root=${here%/scripts/setup.sh}

say() { printf 'imagefs: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# An environment belongs to one checkout and one list of dependencies.
key=$({ cat "$root/setup.cfg"; printf '%s\n' "$root"; } | sha256sum)
key=${key:0:16}
env=${IMAGEFS_ENV:-${XDG_CACHE_HOME:-~/.cache}/imagefs/venv-$key}
[[ $env == /* ]] || env=$PWD/$env
env=${env%/}

# Whether the environment is there for KIND (run, test). Its marker is written last; it also names the
# interpreter, because a venv whose interpreter went from 3.11 to 3.13 has no packages any more.
complete() {
    local marker=$env/complete-$1
    [[ -f $marker && -x $env/bin/python && $(<"$marker") == "$key $(readlink -f "$env/bin/python")" ]]
}

prepare() {
    local kind=$1
    if complete "$kind"; then return; fi
    mkdir -p "${env%/*}"
    (
        flock 9
        if ! complete "$kind"; then build "$kind"; fi
    ) 9>"$env.lock"
}

build() {
    local kind=$1 python extras=''
    [[ $kind == run ]] || extras='[test,dev]'
    if ! complete run; then
        if [[ -e $env && ! -e $env/.imagefs-environment ]] && [[ -n $(ls -A "$env") ]]; then
            fail "$env is there and was not made by this script; give another directory in IMAGEFS_ENV"
        fi
        debian_packages fuse3 libfuse2
        python=$(find_python)
        say "setting up $env, once (about half a minute)"
        rm -rf -- "$env"
        mkdir -p "$env/src"
        touch "$env/.imagefs-environment"
        "$python" -m venv "$env" >&2
        # The package is installed from a directory of links, so the checkout may be read-only.
        ln -s "$root"/{imagefs,setup.cfg,pyproject.toml,README.md,LICENSE} "$env/src/"
    else
        say "adding the test tools to $env, once"
    fi
    # Before anything changes: a pip that is killed leaves an environment without a marker.
    rm -f "$env"/complete-*
    "$env/bin/python" -m pip install --quiet --quiet --disable-pip-version-check --no-input \
        --editable "$env/src$extras" >&2
    sync -f "$env"
    mark run
    [[ $kind == run ]] || mark "$kind"
}

mark() {
    printf '%s %s\n' "$key" "$(readlink -f "$env/bin/python")" >"$env/complete-$1.new"
    mv "$env/complete-$1.new" "$env/complete-$1"
}

# Prints a Python that is new enough and can make environments and build extension modules (pyxattr has
# no wheels).
find_python() {
    local python
    python=$(new_enough) || {
        debian_packages python3
        python=$(new_enough) || fail "imagefs needs Python 3.11 or newer"
    }
    local -a packages=()
    can "$python" 'import ensurepip, venv' || packages+=("$(of_python "$python" venv)")
    can "$python" 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' ||
        packages+=("$(of_python "$python" dev)")
    command -v cc >/dev/null || packages+=(gcc libc6-dev)
    debian_packages "${packages[@]}"
    printf '%s\n' "$python"
}

new_enough() {
    local python
    for python in python3 python3.13 python3.12 python3.11; do
        if command -v "$python" >/dev/null && can "$python" 'import sys; assert sys.version_info >= (3, 11)'; then
            command -v "$python"
            return
        fi
    done
    return 1
}

can() { "$1" -c "$2" >/dev/null 2>&1; }

of_python() { "$1" -c 'import sys; print("python%d.%d-%s" % (*sys.version_info[:2], sys.argv[1]))' "$2"; }

# Installs the named Debian packages where they are missing; says how when it may not.
debian_packages() {
    local package
    local -a missing=()
    for package; do
        installed "$package" || missing+=("$package")
    done
    if ((${#missing[@]} == 0)); then return; fi
    if ! command -v apt-get >/dev/null; then
        say "this machine may lack what Debian calls: ${missing[*]}"
    elif ((EUID != 0)); then
        say "some things will not work without: sudo apt-get install ${missing[*]}"
    else
        say "installing ${missing[*]}"
        apt_install "${missing[@]}" || say "could not install all of: ${missing[*]}"
    fi
}

installed() {
    case $1 in
        libfuse2) # has another package name on newer systems
            PATH=$PATH:/sbin:/usr/sbin ldconfig -p | grep -c 'libfuse\.so\.2' >/dev/null ;;
        *) [[ $(dpkg-query --show --showformat '${db:Status-Status}' "$1" 2>/dev/null) == installed ]] ;;
    esac
}

# A fresh machine has no package lists, an old one stale lists: both fail first and are updated then.
apt_install() {
    apt install --no-install-recommends "$@" 2>/dev/null || { apt update && apt install --no-install-recommends "$@"; }
}

# What it prints is shown only if it fails. 9>&-: a service that a package starts must not keep our lock.
apt() {
    local said
    said=$(DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=600 "$@" 2>&1 </dev/null 9>&-) ||
        { printf '%s\n' "$said" >&2 && return 1; }
}
