# Tidy tables of a platform: repetitions, cells of the grid with their metrics, and the profile.


rule aggregate:
    input:
        bench=lambda wildcards: job_files(wildcards.folder, "bench"),
        profile=lambda wildcards: job_files(wildcards.folder, "profile"),
        model=lambda wildcards: whole_model_files(wildcards.folder),
        code=code_of("code/heteroring/results/aggregate.py"),
    output:
        tables=reported(tables_of(MEASURED_FOLDERS[0])),
        provenance="{folder}/provenance.json",
    log:
        "{folder}/derived/aggregate.log",
    wildcard_constraints:
        folder=one_of(MEASURED_FOLDERS),
    conda:
        ENVIRONMENT
    params:
        grid=lambda wildcards: aggregate_options(wildcards.folder),
    message:
        "Aggregate {wildcards.folder}"
    shell:
        "heteroring aggregate --platform-dir {wildcards.folder} {params.grid} > {log} 2>&1"


# Recorded measurements come with their provenance, and some without a whole model.
use rule aggregate as aggregate_recorded with:
    output:
        tables=reported(TABLES + MODEL_TABLES),
    wildcard_constraints:
        folder=one_of(folder for folder in RECORDED_FOLDERS if has_whole_model(folder)),


use rule aggregate as aggregate_recorded_layers with:
    output:
        tables=reported(TABLES),
    wildcard_constraints:
        folder=one_of(folder for folder in RECORDED_FOLDERS if not has_whole_model(folder)),
