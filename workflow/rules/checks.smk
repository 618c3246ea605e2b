# Checks that measurements are complete and plausible; a violation fails the run and is listed with all others.


rule checks:
    input:
        measurements="{folder}/derived/measurements.csv",
        cells="{folder}/derived/cells.csv",
        code=code_of("workflow/scripts/check_measurements.py"),
    output:
        report="{folder}/derived/checks.txt",
    log:
        "{folder}/derived/checks.log",
    conda:
        ENVIRONMENT
    params:
        grid=lambda wildcards: json.dumps(grid_of(FOLDERS[wildcards.folder])),
        noise=lambda wildcards: noise_of(FOLDERS[wildcards.folder]),
    message:
        "Check the measurements in {wildcards.folder}"
    shell:
        "python workflow/scripts/check_measurements.py {input.measurements} {input.cells} {output.report}"
        " {params.grid:q} {params.noise} > {log} 2>&1"
