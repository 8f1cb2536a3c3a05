#!/bin/sh
# Installs what the tests' servers need and this machine lacks (make test-system): Debian, as root.
# Elsewhere it says in one line what is missing, and the tests that need it are skipped with the reason;
# with --strict, or in CI, that is an error.
set -e
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

missing=
for pair in slurmctld:slurmctld slurmd:slurmd sbatch:slurm-client munged:munge slurmdbd:slurmdbd \
    mariadbd:mariadb-server-core mariadb:mariadb-client-core ip:iproute2 tmux:tmux chromium:chromium; do
    command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair#*:}"
done
[ -e /etc/profile.d/lmod.sh ] || missing="$missing lmod"
command -v postgres >/dev/null || ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 ||
    missing="$missing postgresql"
[ -n "$missing" ] || exit 0

refuse() {
    echo "$1; the tests that need these Debian packages cannot run:$missing" >&2
    if [ "$CI" = true ] || [ "$strict" = --strict ]; then exit 1; fi
    exit 0
}
strict=$1
command -v apt-get >/dev/null || refuse "no apt-get here"
[ "$(id -u)" = 0 ] || refuse "not root (sudo make test-system)"

# Debian starts what it installs, unless this file says no: the tests start their servers themselves.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 1' INT TERM HUP
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod 755 "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086  # a list
{ apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing; } || refuse "apt-get failed"
