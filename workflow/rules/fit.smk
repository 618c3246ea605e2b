# Speed models for the allocators: a lookup table and a regression, from either kind of profile.


rule fit:
    input:
        profile=lambda wildcards: expand(
            f"{DATA}/{wildcards.live}/profile/pct-{{percentage}}.csv", percentage=PERCENTAGES
        ),
    output:
        model=f"{DATA}/{{live}}/models/{{kind}}-{{source}}.json",
    log:
        f"{LOGS}/{{live}}/models/{{kind}}-{{source}}.log",
    conda:
        ENVIRONMENT
    message:
        "Fit the {wildcards.kind} model to the {wildcards.source} profile of {wildcards.live}"
    shell:
        "heteroring fit --kind {wildcards.kind} --source {wildcards.source}"
        " --output {output.model} {input.profile} > {log} 2>&1"
