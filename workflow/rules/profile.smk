# Profiles of one rank at each throttle setting: square matmuls, and the operators of the ring at each length.


rule profile:
    output:
        rows=f"{DATA}/{{live}}/profile/pct-{{percentage}}.csv",
        provenance=f"{DATA}/{{live}}/profile/pct-{{percentage}}.json",
    log:
        f"{LOGS}/{{live}}/profile/pct-{{percentage}}.log",
    priority: FIRST
    conda:
        ENVIRONMENT
    threads: workflow.cores
    resources:
        machine=1,
    params:
        command=lambda wildcards: command(
            COMMANDS[wildcards.live].profile(int(wildcards.percentage), at(rules.profile.output.rows, wildcards))
        ),
    message:
        "Profile one {wildcards.live} rank at {wildcards.percentage} %"
    shell:
        "{params.command} > {log} 2>&1"
