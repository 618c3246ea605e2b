# Models for the allocators: of speed, a lookup table and a regression; of cost, of each module that is measured.


rule fit:
    input:
        profile=lambda wildcards: expand(
            f"{DATA}/{wildcards.live}/profile/pct-{{percentage}}.csv", percentage=PERCENTAGES
        ),
        code=code_of(FITTING),
    output:
        model=f"{DATA}/{{live}}/models/{{model}}.json",
    log:
        f"{LOGS}/{{live}}/models/{{model}}.log",
    priority: FIRST
    conda:
        ENVIRONMENT
    params:
        kind=lambda wildcards: wildcards.model.partition("-")[0],
        source=lambda wildcards: wildcards.model.partition("-")[2],
    message:
        "Fit the {params.kind} model to the {params.source} profile of {wildcards.live}"
    shell:
        "heteroring fit --kind {params.kind} --source {params.source}"
        " --output {output.model} {input.profile} > {log} 2>&1"
