# The validated configuration, and common parts of all stages: folders, platforms, and the files of a platform.
import json
import os
import re
import shlex
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from heteroring.bench.tracking import check_tracker
from heteroring.launch.machine_lock import holder
from heteroring.figures import CATALOG, NAMES
from heteroring.results.rank_percentages import ranks_of
from heteroring.results.results import CHUNKS, OPTIONAL
from heteroring.words import choices
from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from workflow.commands import BLOCK_FIT, BLOCK_COST_MODEL, Commands
from workflow.preflight.configuration import check
from workflow.preflight.link_checkout import paper_figures, paper_sources
from workflow.preflight.python_imports import with_imports
from workflow.preflight.outputs import check_writable
from workflow.preflight.platforms import PREFERRED_RECORD, choose, recorded_platforms, visible_gpus
from workflow.preflight.stale_lock import drop_stale_lock, take_ownership
from workflow.preflight.whole_models import check_models

# ibm-fms has no release for Python 3.13.
HAS_FMS = find_spec("fms") is not None
SCHEMA = Path("workflow/schemas/config.schema.yaml")
DEFAULTS = Path("workflow/config/default.yaml")

try:
    check(config, SCHEMA)
    if HAS_FMS:
        check_models(config, DEFAULTS)
    RANKS = len(ranks_of(config["percentages"][0]))
    PLATFORMS = choose(config["platform"], visible_gpus(), recorded_platforms(Path("data")), RANKS)
    ROOT = f"runs/{config['run']}/" if config["run"] else ""
    DATA, FIGURES, LATEX, LOGS = (f"{ROOT}{folder}" for folder in ("data", "figures", "latex", "logs"))
    check_writable([DATA, FIGURES, LATEX, LOGS])
    check_tracker(config["track"])
except ValueError as error:
    raise WorkflowError(str(error))

STATE = Path(".snakemake")
drop_stale_lock(STATE)


# The measurements.
MODULES = [module for module in config["modules"] if module != "fms" or HAS_FMS]
COMMANDS = {platform: Commands(config, platform, MODULES) for platform in PLATFORMS.measurable}


onstart:
    take_ownership(STATE)
    if (other := holder()) is not None:
        logger.warning(f"What is measured here waits for {other}")
    if MODULES != config["modules"]:
        logger.warning(
            "ibm-fms is not installed: attention alone is measured, no layer around it and no whole model."
        )


ENVIRONMENT = "../envs/heteroring.yml"

# The code on which fitted models depend, without the command line.
FITTING = "code/heteroring/allocators/fitting.py"
# Priority of profiles and models: they precede the measurements whose splits use them, even if these need not wait.
FIRST = 1

# Jobs run the Python that runs Snakemake, and the commands beside it, also where its environment is not activated.
os.environ.update(PATH=os.pathsep.join([str(Path(sys.executable).parent), os.getenv("PATH", os.defpath)]))
# Not as an option in the commands: tracking must not make Snakemake repeat a measurement.
os.environ.update(HETERORING_TRACK=config["track"], WANDB_DIR=os.getenv("WANDB_DIR", ROOT or "."))

# All platforms have the same grid, except for the jobs of the ring.
GRID = next(iter(COMMANDS.values()))
PERCENTAGES = [f"{percentage:03d}" for percentage in GRID.profiled_percentages]
FITTED_MODELS = list(GRID.fits)
SETTINGS = {platform: {each.name: each for each in COMMANDS[platform].settings()} for platform in COMMANDS}
TABLES = ("profile", "measurements", "cells")
# The grid of whole models, which ibm-fms builds.
MODEL_SETTINGS = {platform: {each.name: each for each in COMMANDS[platform].model_settings()} for platform in COMMANDS}
DECODE_SETTINGS = {
    platform: {each.name: each for each in COMMANDS[platform].decode_settings()} for platform in COMMANDS
}
MODEL_PROFILES = [f"{percentage:03d}" for percentage in GRID.model_profiles]
MODEL_TABLES = ("model", "trace")


def folder_of(platform):
    """Measured platforms lie in the folder of the run, recorded ones under data/."""
    if platform not in PLATFORMS.known:
        raise WorkflowError(f"unknown platform {platform!r}: {choices(platform, PLATFORMS.known)}")
    return f"data/{platform}" if platform in PLATFORMS.recorded else f"{DATA}/{platform}"


FOLDERS = {folder_of(platform): platform for platform in PLATFORMS.known}
MEASURED_FOLDERS = [folder_of(platform) for platform in PLATFORMS.measurable]
RECORDED_FOLDERS = [folder_of(platform) for platform in PLATFORMS.recorded]


def one_of(choices):
    """Wildcard constraint; matches nothing when there is nothing to choose from."""
    return "|".join(map(re.escape, choices)) or "(?!)"


def command(arguments):
    """A `heteroring` command line."""
    return shlex.join(["heteroring", *arguments])


def at(output, wildcards):
    """The path of a rule's output.

    Snakemake repeats a job whose params have changed, unless they are functions of its input or output, so the params
    of measurements are functions of wildcards alone.
    """
    return expand(output, **dict(wildcards.items()))[0]


def comma(values):
    return ",".join(map(str, values))


def job_files(folder, stage):
    """Row files and their provenance, one pair per job."""
    if FOLDERS[folder] in PLATFORMS.recorded:
        return sorted(str(path) for path in Path(folder, stage).glob("pct-*.*"))
    profiles = [f"pct-{percentage}" for percentage in PERCENTAGES]
    names = list(SETTINGS[FOLDERS[folder]]) if stage == "bench" else profiles
    return expand(f"{folder}/{stage}/{{name}}.{{kind}}", name=names, kind=["csv", "json"])


def setting_of(settings, name):
    """The setting of a job, by its name."""
    if name not in settings:
        raise WorkflowError(f"{name} is no job of the configured grid: {choices(name, settings)}")
    return settings[name]


def has_whole_model(folder):
    """Whether a whole model is measured there, or was."""
    if FOLDERS[folder] in PLATFORMS.recorded:
        return any(Path(folder, "model").glob("pct-*.csv"))
    return HAS_FMS and bool(config["model_percentages"])


def whole_model_files(folder):
    """Rows, traces and provenance of whole models, and of the profile that their cost is fitted to."""
    if FOLDERS[folder] in PLATFORMS.recorded:
        return sorted(str(path) for path in Path(folder, "model").rglob("*-*.*") if path.parent.name != "models")
    if not has_whole_model(folder):
        return []
    settings, decodes = MODEL_SETTINGS[FOLDERS[folder]], DECODE_SETTINGS[FOLDERS[folder]]
    return [
        *expand(f"{folder}/model/{{name}}.{{kind}}", name=[*settings, *decodes], kind=["csv", "json"]),
        *(f"{folder}/model/{setting.trace}.csv" for setting in settings.values()),
        *expand(f"{folder}/model/profile/pct-{{percentage}}.{{kind}}", percentage=MODEL_PROFILES, kind=["csv", "json"]),
    ]


def aggregate_options(folder):
    """Options that name the jobs of the grid: the folder of a live platform may hold others as well."""
    if FOLDERS[folder] in PLATFORMS.recorded:
        return ""
    platform = FOLDERS[folder]
    whole = [*MODEL_SETTINGS[platform], *DECODE_SETTINGS[platform]] if has_whole_model(folder) else []
    profiles = comma(GRID.profiled_percentages)
    return f"--percentages {profiles} --bench {comma(SETTINGS[platform])} --model {comma(whole) or 'none'}"


# What files import, found once for all rules.
IMPORTS = {}


def code_of(*paths):
    """These files and those that they import. Tables, fits, figures and numbers depend on them, measurements do not."""
    try:
        return with_imports(paths, known=IMPORTS)
    except ValueError as error:
        raise WorkflowError(str(error))


def to_split_by(models, rows):
    """Models as input of the measurement that writes `rows`: required before it is made, ignored afterwards.

    Measuring takes long, so new fits of models must not repeat it. With `ancient` by itself, Snakemake would ignore
    other reasons to repeat it whenever a fit runs.
    """
    if all(Path(path).exists() for path in [*models, *rows]):
        return [ancient(before_update(path)) for path in models]
    return models


def tables_of(folder):
    return (*TABLES, *(MODEL_TABLES if has_whole_model(folder) else ()))


def reported(names):
    """Paths of derived tables; all but the repetitions are part of the report."""
    caption = {"caption": "../report/table.rst", "category": "Tables", "subcategory": "{folder}"}
    paths = {name: f"{{folder}}/derived/{name}.csv" for name in names}
    return [
        path if name == "measurements" else report(path, labels={"table": name}, **caption)
        for name, path in paths.items()
    ]


def model_files(folder):
    """The fitted models of a platform's folder."""
    if FOLDERS[folder] in PLATFORMS.recorded:
        return sorted(str(path) for path in Path(folder, "models").glob("*.json"))
    return expand(f"{folder}/models/{{model}}.json", model=FITTED_MODELS)


def block_model(folder):
    """The cost model by which whole models were split, where there is one."""
    path = Path(folder, "model", "models", f"{BLOCK_COST_MODEL}.json")
    there = path.exists() if FOLDERS[folder] in PLATFORMS.recorded else has_whole_model(folder)
    return [str(path)] if there else []


def results_of(platform):
    """Everything that Results.load reads."""
    folder = folder_of(platform)
    return [
        *expand(f"{folder}/derived/{{table}}.csv", table=tables_of(folder)),
        *model_files(folder),
        *block_model(folder),
        f"{folder}/provenance.json",
        *(str(path) for name in OPTIONAL for path in Path(folder).glob(name)),
    ]


wildcard_constraints:
    live=one_of(PLATFORMS.measurable),
    folder=one_of(FOLDERS),
    platform="[a-z0-9]+",
    percentage=r"\d{3}",
    setting=r"pct-[-\d]+(\.[a-z]+)?\.job-\d+",
    whole=r"[-\d]+\.job-\d+",
    decode=r"[-\d]+\.decode-\d+\.job-\d+",
    model=one_of(FITTED_MODELS),
    name="[A-Za-z0-9_-]+",


# Figures are imported by name at run time, so their files are listed.
FIGURE_CODE = [path for path in Path("code/heteroring/figures").rglob("*") if path.suffix in (".py", ".mplstyle")]
PAPER_SOURCES = paper_sources(Path("latex"))
# The platform that the paper's text is about, wherever it is typeset, and the platforms whose figures it shows.
PAPER = PREFERRED_RECORD
PAPER_PLATFORMS = {"record": PAPER, "live": PLATFORMS.live}
# Records of experiments of their own (docs/recording.md), where they lie beside the paper's, and the figures about them.
EXPERIMENTS = {
    each.removeprefix(PAPER): each for each in PLATFORMS.recorded if each.startswith(PAPER) and each != PAPER
}
EXPERIMENT_FIGURES = {"ablation": "ablation", "heldout": "regret"}


def grid_of(platform):
    """The grid that the measurements of a live platform must fill; a recorded platform states its own grid."""
    if platform in PLATFORMS.recorded:
        return None
    return COMMANDS[platform].grid()


def noise_of(platform):
    """How far a platform's bound fractions may exceed 1."""
    return config["platforms"]["gpu" if platform in PLATFORMS.recorded else platform]["bound_fraction_noise"]


def model_grid_of(platform):
    """The grid that the measurements of a live platform's whole model must fill; a recorded platform states its own."""
    if platform in PLATFORMS.recorded:
        return None
    return COMMANDS[platform].model_grid()


def known_figure(name):
    if name not in NAMES:
        raise WorkflowError(f"unknown figure {name!r}: {choices(name, NAMES)}")
    return name


def paper_sources(wildcards):
    if shutil.which("latexmk") is None:
        raise WorkflowError(
            "latexmk is not installed, so the PDF cannot be built: `make` says what to install; "
            "everything else is built by `snakemake --cores 1 all_but_pdf`"
        )
    return [f"{LATEX}/{source}" for source in PAPER_SOURCES]


def paper_records(wildcards):
    """The results behind claims and numbers: the paper's record, and those of experiments beside it."""
    return [path for platform in (PAPER, *EXPERIMENTS.values()) for path in results_of(platform)]


def paper_inputs():
    """The generated files of the paper: claims, numbers, its first figure, and those that its sections include."""
    images = [f"{LATEX}/images/{name}.pdf" for name in paper_figures(Path("latex"))]
    return [*rules.claims.output, *rules.numbers.output, *rules.overview.output, *images]


def everything_but_pdf():
    """Results, and intermediate files, too, so that missing ones are made again."""
    folders = [folder_of(platform) for platform in PLATFORMS.shown]
    return [
        *(path for folder in folders for stage in ("profile", "bench") for path in job_files(folder, stage)),
        *(path for folder in folders for path in whole_model_files(folder)),
        *(path for platform in PLATFORMS.shown for path in results_of(platform)),
        *expand(
            f"{FIGURES}/{{platform}}/{{name}}.{{suffix}}",
            platform=PLATFORMS.shown,
            name=NAMES,
            suffix=["png", "pdf"],
        ),
        *expand(f"{FIGURES}/{{name}}.{{suffix}}", name=NAMES, suffix=["png", "pdf"]),
        *expand("{folder}/derived/checks.txt", folder=folders),
        *expand("{folder}/derived/model-checks.txt", folder=filter(has_whole_model, folders)),
        *(paper_inputs() if PAPER in PLATFORMS.recorded else []),
        *(
            f"{FIGURES}/{EXPERIMENTS[each]}/{name}.png"
            for each, name in EXPERIMENT_FIGURES.items()
            if each in EXPERIMENTS
        ),
        *expand(rules.track.output, platform=PLATFORMS.shown if config["track"] != "none" else []),
    ]
