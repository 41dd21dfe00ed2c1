#!/usr/bin/env bash
# Installs programs, completions and manual pages below PREFIX (in DESTDIR, for packages); `make install` builds first.
#   install.sh PREFIX [DESTDIR]
set -euo pipefail
cd "$(dirname "$0")/.."

prefix=${1:?usage: install.sh PREFIX [DESTDIR]}
root=${2:-}$prefix
programs=(kiseki kiseki-devctl kiseki-server kiseki-bench)
man=$(mktemp -d)
trap 'rm -rf "$man"' EXIT

for program in "${programs[@]}"; do
    built=target/release/$program
    install -D -m 755 "$built" "$root/bin/$program"
    for shell in bash:share/bash-completion/completions/$program zsh:share/zsh/site-functions/_$program \
        fish:share/fish/vendor_completions.d/$program.fish; do
        "$built" completion "${shell%%:*}" >"$man/completion"
        install -D -m 644 "$man/completion" "$root/${shell#*:}"
    done
    rm -f "$man/completion"
    "$built" man "$man"
done
install -d "$root/share/man/man1"
install -m 644 "$man"/*.1 "$root/share/man/man1/"
echo "installed below $root: ${programs[*]}, completions for bash, zsh and fish, $(ls "$man" | wc -l) manual pages"
