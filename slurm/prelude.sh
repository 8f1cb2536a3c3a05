# shellcheck shell=bash
# What the job scripts share. They source it with root=REPOSITORY; it sets HPCRL_ROOT, HPCRL_BIN, PATH and
# OMP_NUM_THREADS, loads modules where there are any, and says in one line what hpcrl it found. With
# HPCRL_MODULES="cuda/12.4 gcc/13" these are loaded first, with HPCRL_MODULES=none no module is touched.

# --export leaves this behind, and the inner srun would hand on no more than its list.
unset SLURM_EXPORT_ENV
export HPCRL_ROOT=${root:?}
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
# Packages in ~/.local would take the place of the pinned ones.
export PYTHONNOUSERSITE=1

# True if there is a module system; a batch shell has no `module` before the site's init file was read.
find_modules() {
    local init
    for init in "${MODULESHOME:-}/init/bash" /etc/profile.d/lmod.sh /etc/profile.d/z00_lmod.sh \
        /etc/profile.d/modules.sh; do                # ADAPT: your site's, if it is none of these
        if ! type module >/dev/null 2>&1 && [ -r "$init" ]; then
            # shellcheck disable=SC1090
            source "$init"
        fi
    done
    type module >/dev/null 2>&1
}

# Loads HPCRL_MODULES and this version's module; sets $found to what there is to say about it.
load_modules() {
    local name version
    if [ "${HPCRL_MODULES:-}" = none ]; then
        found="no modules (HPCRL_MODULES=none)"
        return
    fi
    if ! find_modules; then
        if [ -n "${HPCRL_MODULES:-}" ]; then
            echo "error: HPCRL_MODULES = $HPCRL_MODULES, but $(hostname) has no module system; unset it" >&2
            exit 2
        fi
        found="no module system here"
        return
    fi
    for name in ${HPCRL_MODULES:-}; do
        if ! module load "$name"; then
            echo "error: HPCRL_MODULES: module $name cannot be loaded; see 'module spider $name'" >&2
            exit 2
        fi
    done
    version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$root/hpcrl/__init__.py")
    if module use "$root/env_modules" && module load "hpcrl/$version" 2>/dev/null; then
        found="modules ${LOADEDMODULES:-hpcrl/$version}"
    else
        found="no module hpcrl/$version to be loaded"
    fi
}

said=${HPCRL_BIN:-}
set +eu  # neither is expected by the sites' files
load_modules
set -e
# What the user says wins over the module.
export HPCRL_BIN=${said:-${HPCRL_BIN:-$root/.venv/bin}}
if [ ! -x "$HPCRL_BIN/hpcrl" ]; then
    echo "error: no hpcrl in $HPCRL_BIN (the job started in $PWD); run 'make setup' in $root, or set" \
        "HPCRL_BIN to the folder that holds it" >&2
    exit 2
fi
export PATH=$HPCRL_BIN:$PATH
echo "hpcrl of $HPCRL_BIN, $found"

# verify_first ARGUMENTS of hpcrl train: a job that would fail in the night fails now, with the cause and the fix.
# At its first start alone; HPCRL_VERIFY=never leaves it out. A node on which it hangs is left to the ranks' watchdog.
verify_first() {
    local code=0
    if [ "${HPCRL_VERIFY:-}" != never ] && [ "${SLURM_RESTART_COUNT:-0}" = 0 ]; then
        timeout -k 30 600 "$HPCRL_BIN/hpcrl" verify --quick "$@" || code=$?
    fi
    case $code in
        124|137) echo "hpcrl verify gave no answer in 10 minutes: training is tried" ;;
        *) return "$code" ;;
    esac
}
