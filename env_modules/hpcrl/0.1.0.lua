-- hpcrl for Lmod: one file per version, named as hpcrl.__version__. It sets variables and decides nothing.
--   module use REPOSITORY/env_modules && module load hpcrl
help([[
hpcrl trains reinforcement-learning trading agents on a Slurm cluster.

    hpcrl --help
    sbatch $HPCRL_ROOT/slurm/train.sbatch --config my.yaml

Relative paths of a job are those of the folder in which you call sbatch. More: $HPCRL_ROOT/docs/cluster.md
]])
whatis("Name: hpcrl")
whatis("Version: 0.1.0")
whatis("Description: reinforcement-learning trading agents on Slurm: transformer PPO on DeepSpeed")
family("hpcrl")

-- The repository is the folder that holds env_modules/. ADAPT: a copy of this file elsewhere names it.
local root = myFileName():match("^(.*)/env_modules/")
local bin = pathJoin(root, ".venv/bin") -- ADAPT: where the hpcrl command is

setenv("HPCRL_ROOT", root)
setenv("HPCRL_BIN", bin)
prepend_path("PATH", bin)
-- Packages in ~/.local would take the place of the pinned ones.
setenv("PYTHONNOUSERSITE", "1")
