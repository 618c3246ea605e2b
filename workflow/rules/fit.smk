# Models for the allocators: speed models (lookup table and regression), and a cost model per measured module.


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
        command=lambda wildcards, input, output: command(
            COMMANDS[wildcards.live].fit(*GRID.fits[wildcards.model], input.profile, output.model)
        ),
    message:
        "Fit {wildcards.model} to the profile of {wildcards.live}"
    shell:
        "{params.command} > {log} 2>&1"
