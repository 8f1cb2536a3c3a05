"""The modulefile under the real Lmod, and slurm/prelude.sh with a module system and without one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from launch.job_scripts import ROOT, Repository

import hpcrl

INIT = Path("/etc/profile.d/lmod.sh")
SYSTEMS = ("/etc/profile.d", "/usr/share/lmod", "/usr/share/modules")
MODULE = f"hpcrl/{hpcrl.__version__}"

with_lmod = pytest.mark.skipif(not INIT.exists(), reason="needs Lmod (Debian's package lmod)")


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path / "clone")


def bash(text: str, *arguments: object, prefix: tuple[str, ...] = (), **environ: str):
    """``text`` run by a bash that knows nothing of modules yet; $1... are ``arguments``."""
    base = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/nonexistent", "USER": "me", "RECORDS": "/tmp"}
    return subprocess.run(
        [*prefix, "bash", "--norc", "-c", text, "bash", *map(str, arguments)],
        env=base | environ, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def prelude(repository: Repository, prefix: tuple[str, ...] = (), **environ: str):
    """slurm/prelude.sh as a job script sources it; then what it has set."""
    text = (
        'set -eo pipefail; root=$1; source "$root/slurm/prelude.sh"; echo "BIN=$HPCRL_BIN"; echo "PATH=$PATH"'
    )
    done = bash(text, repository.path, prefix=prefix, **environ)
    assert done.returncode == 2 or done.stdout.count("\n") == 3, done.stdout + done.stderr
    return done


def test_there_is_one_modulefile_named_as_the_version():
    assert [path.name for path in (ROOT / "env_modules/hpcrl").iterdir()] == [f"{hpcrl.__version__}.lua"]
    assert f'whatis("Version: {hpcrl.__version__}")' in (ROOT / f"env_modules/{MODULE}.lua").read_text()


@with_lmod
class TestLmod:
    def test_the_module_sets_paths_and_takes_them_back(self, repository):
        text = """
        source /etc/profile.d/lmod.sh; module use "$1/env_modules"
        show() { echo "$HPCRL_ROOT|$HPCRL_BIN|$PYTHONNOUSERSITE|${PATH%%:*}"; }
        show; module load hpcrl; show; module -t list 2>&1; module unload hpcrl; show
        """
        done = bash(text, repository.path)
        before, loaded, name, after = done.stdout.splitlines()
        assert done.stderr == "" and before == after == "|||/usr/local/bin" and name == MODULE
        assert loaded == f"{repository.path}|{repository.bin}|1|{repository.bin}"

    def test_it_says_what_it_is(self, repository):
        use = 'source /etc/profile.d/lmod.sh; module use "$1/env_modules"'
        done = bash(f"{use}; module help hpcrl; module whatis hpcrl", repository.path)
        shown = done.stdout + done.stderr
        assert "sbatch $HPCRL_ROOT/slurm/train.sbatch" in shown and f"Version: {hpcrl.__version__}" in shown

    def test_a_job_loads_it(self, repository):
        said, bin_line, path = prelude(repository).stdout.splitlines()
        assert said == f"hpcrl of {repository.bin}, modules {MODULE}"
        assert bin_line == f"BIN={repository.bin}" and path.startswith(f"PATH={repository.bin}:")

    def test_an_hpcrl_bin_of_the_users_wins(self, repository, tmp_path):
        mine = tmp_path / "mine"
        mine.symlink_to(repository.bin)
        said, bin_line, path = prelude(repository, HPCRL_BIN=str(mine)).stdout.splitlines()
        assert said == f"hpcrl of {mine}, modules {MODULE}"
        assert bin_line == f"BIN={mine}" and path.startswith(f"PATH={mine}:")

    def test_hpcrl_modules_are_loaded_first(self, repository, tmp_path):
        for name in ("cuda/12.4", "gcc/13"):
            (tmp_path / name).parent.mkdir()
            (tmp_path / f"{name}.lua").write_text(f'setenv("{name[:3].upper()}_HOME", "/opt/{name}")\n')
        done = prelude(repository, MODULEPATH=str(tmp_path), HPCRL_MODULES="cuda/12.4 gcc")
        assert done.stdout.splitlines()[0] == f"hpcrl of {repository.bin}, modules cuda/12.4:gcc/13:{MODULE}"

    def test_a_module_that_is_not_there_is_an_error(self, repository):
        done = prelude(repository, HPCRL_MODULES="cuda/99")
        assert done.returncode == 2
        assert (
            "error: HPCRL_MODULES: module cuda/99 cannot be loaded; see 'module spider cuda/99'"
            in done.stderr
        )

    def test_a_modulefile_that_is_not_there_is_said_and_the_venv_taken(self, repository):
        (repository.path / f"env_modules/{MODULE}.lua").unlink()
        done = prelude(repository)
        assert done.stdout.splitlines()[0] == f"hpcrl of {repository.bin}, no module {MODULE} to be loaded"
        assert done.stderr == ""

    def test_none_touches_no_module(self, repository):
        done = prelude(repository, HPCRL_MODULES="none")
        assert done.stdout.splitlines()[0] == f"hpcrl of {repository.bin}, no modules (HPCRL_MODULES=none)"


class TestWithoutAModuleSystem:
    @pytest.fixture
    def bare(self) -> tuple[str, ...]:
        """A command that runs another where no module system is installed: this machine's is hidden."""
        places = [path for path in SYSTEMS if Path(path).exists()]
        if not places:
            return ()
        hide = " && ".join(f"mount -t tmpfs none {path}" for path in places)
        unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]
        prefix = (*unshare, "sh", "-c", f'{hide} && exec "$@"', "sh")
        if subprocess.run([*prefix, "true"], capture_output=True).returncode:
            pytest.skip(
                "this machine's module system can be hidden only in a namespace, which is not allowed"
            )
        return prefix

    def test_the_venv_is_taken_and_it_is_said(self, repository, bare):
        said, bin_line, path = prelude(repository, bare).stdout.splitlines()
        assert said == f"hpcrl of {repository.bin}, no module system here"
        assert bin_line == f"BIN={repository.bin}" and path.startswith(f"PATH={repository.bin}:")

    def test_modules_that_were_asked_for_are_an_error(self, repository, bare):
        done = prelude(repository, bare, HPCRL_MODULES="cuda/12.4")
        assert done.returncode == 2 and done.stderr.startswith("error: HPCRL_MODULES = cuda/12.4, but ")
