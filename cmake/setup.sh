#!/usr/bin/env bash
# Installs what heed's tests, benchmarks and examples need on Debian 12 or later and on Ubuntu: compilers, CMake, Ninja, libraries.
#
#     cmake/setup.sh        as root, or as a user of sudo; does nothing where all is there
set -euo pipefail
export PATH="${HOME:-}/.local/bin:$PATH" LC_ALL=C

packages=(g++ ninja-build ccache git python3 python3-pip libxsimd-dev libeigen3-dev catch2 libbenchmark-dev libcli11-dev
    nlohmann-json3-dev libfmt-dev libtbb-dev openmpi-bin libopenmpi-dev)
oldest_cmake=3.25
oldest_clang=16

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }
has_cmake() { command -v cmake >/dev/null && at_least "$(cmake --version | sed -n '1s/[^0-9]*//p')" "$oldest_cmake"; }
candidate() { apt-cache policy "$1" | sed -n 's/^  Candidate: \([0-9].*\)$/\1/p'; }

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
    fail "this script knows apt only; install these or their like by other means: ${packages[*]} cmake (>= $oldest_cmake) clang (>= $oldest_clang, with its OpenMP and sanitizer runtimes)"
fi

installed=" $(dpkg-query -W -f '${db:Status-Abbrev}${Package} ' 2>/dev/null | grep -o 'ii [^ ]*' | cut -d ' ' -f 2 | tr '\n' ' ')"
has() { [[ "$installed" == *" $1 "* ]]; }
has_clang() {
    local version
    for version in $(grep -o 'clang-[0-9][0-9]* ' <<<"$installed" | tr -dc '0-9\n'); do
        if [ "$version" -ge "$oldest_clang" ] && has "clang-$version" && has "libomp-$version-dev" && has "libclang-rt-$version-dev"; then
            return 0
        fi
    done
    return 1
}

missing=()
for package in "${packages[@]}"; do
    has "$package" || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ] && has_cmake && has_clang; then
    say "nothing to install"
    exit 0
fi

say "installing with apt what heed's tests, benchmarks and examples lack on this machine"
as_root=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || fail "needs root or sudo"
    as_root=(sudo)
fi
"${as_root[@]}" apt-get update -qq || say "apt-get update failed; going on with the lists that are there"

cmake_from_pypi=false
if ! has_cmake; then
    offered=$(candidate cmake)
    if [ -n "$offered" ] && at_least "$offered" "$oldest_cmake"; then
        missing+=(cmake)
    else
        cmake_from_pypi=true
    fi
fi
if ! has_clang; then
    clang=""
    for version in $(apt-cache search --names-only '^clang-[0-9]+$' | sed 's/^clang-\([0-9]*\) .*/\1/' | sort -rn); do
        if [ "$version" -ge "$oldest_clang" ] && [ -n "$(candidate "libomp-$version-dev")" ] && [ -n "$(candidate "libclang-rt-$version-dev")" ]; then
            clang=$version
            break
        fi
    done
    if [ -n "$clang" ]; then
        missing+=("clang-$clang" "libomp-$clang-dev" "libclang-rt-$clang-dev")
    else
        say "apt offers no clang >= $oldest_clang; preset clang will not work, everything else does"
    fi
fi

if [ ${#missing[@]} -gt 0 ]; then
    say "apt-get install ${missing[*]}"
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" ||
        fail "apt-get could not install: ${missing[*]}"
fi

if $cmake_from_pypi; then
    say "this system's cmake is older than $oldest_cmake; installing one from PyPI for this user"
    if command -v pipx >/dev/null; then
        pipx install "cmake>=$oldest_cmake"
    else
        python3 -m pip install --user "cmake>=$oldest_cmake"
    fi
    hash -r
    has_cmake || fail "an older cmake comes before $HOME/.local/bin in PATH; put that folder first"
    say "put $HOME/.local/bin into PATH"
fi
say "done"
