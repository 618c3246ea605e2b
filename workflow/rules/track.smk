# Where tracking is asked for, the tables and figures of each platform that is shown, logged once they are all there.


rule track:
    input:
        results=lambda wildcards: results_of(wildcards.platform),
        figures=expand(f"{FIGURES}/{{{{platform}}}}/{{name}}.png", name=NAMES),
    output:
        where=f"{LOGS}/{{platform}}/tracked.txt",
    log:
        f"{LOGS}/{{platform}}/track.log",
    conda:
        ENVIRONMENT
    params:
        folder=lambda wildcards: folder_of(wildcards.platform),
    message:
        "Log the tables and figures of {wildcards.platform}"
    shell:
        "python workflow/scripts/track_results.py {params.folder} {input.figures} > {output.where} 2> {log}"
