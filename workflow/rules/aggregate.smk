# One tidy table per question: repetitions, cells of the grid with their metrics, and the profile.


rule aggregate:
    input:
        bench=lambda wildcards: job_files(wildcards.folder, "bench"),
        profile=lambda wildcards: job_files(wildcards.folder, "profile"),
        code=expand("code/heteroring/bench/{module}.py", module=["aggregate", "metrics"]),
    output:
        tables=expand("{{folder}}/derived/{table}.csv", table=TABLES),
        provenance="{folder}/provenance.json",
    log:
        "{folder}/derived/aggregate.log",
    wildcard_constraints:
        folder=one_of(MEASURED_FOLDERS),
    conda:
        ENVIRONMENT
    message:
        "Aggregate {wildcards.folder}"
    shell:
        "heteroring aggregate --platform-dir {wildcards.folder} > {log} 2>&1"


# Recorded measurements come with their provenance.
use rule aggregate as aggregate_recorded with:
    output:
        tables=expand("{{folder}}/derived/{table}.csv", table=TABLES),
    wildcard_constraints:
        folder=one_of(RECORDED_FOLDERS),
