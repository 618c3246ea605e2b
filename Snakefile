# From benchmarks to the paper: profile -> fit -> bench -> aggregate -> figures -> paper, and checks on the way.
#
#   snakemake --cores 1 all                            everything, the PDF included
#   snakemake --cores 1 all_but_pdf                    the same where there is no TeX
#   snakemake --cores 1 figures/speedup_heatmap.png    one figure
#   snakemake --cores 1 latex/report.pdf               the paper
#   snakemake --cores 1 all --directory /elsewhere     everything there, this folder being left alone
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version

from workflow.preflight.link_checkout import link_checkout

min_version("9.5")

try:
    link_checkout(Path(workflow.basedir))
except ValueError as error:
    raise WorkflowError(str(error))


configfile: "workflow/config/default.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/profile.smk"
include: "workflow/rules/fit.smk"
include: "workflow/rules/bench.smk"
include: "workflow/rules/model.smk"
include: "workflow/rules/aggregate.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/paper.smk"
include: "workflow/rules/checks.smk"
include: "workflow/rules/track.smk"


rule all:
    default_target: True
    input:
        everything_but_pdf(),
        pdf=f"{LATEX}/report.pdf",
    message:
        f"Everything is built: {LATEX}/report.pdf, figures in {FIGURES}"


rule all_but_pdf:
    input:
        everything_but_pdf(),
    message:
        f"Everything but the PDF is built: figures in {FIGURES}"
