# How fast one rank computes at each throttle setting: square matmuls, and what the ring consists of at each length.


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
        percentage=lambda wildcards: int(wildcards.percentage),
        throttle=lambda wildcards: settings_of(wildcards.live)["throttle"],
        shape=lambda wildcards: shape_options(wildcards.live),
        kinds=lambda wildcards: f"{comma(PROFILES)}{fms_lengths(wildcards.live)}",
        sizes=lambda wildcards: comma(settings_of(wildcards.live)["matmul_sizes"]),
        repeats=lambda wildcards: repeat_options(wildcards.live),
    message:
        "Profile one {wildcards.live} rank at {params.percentage} %"
    shell:
        "heteroring profile --platform {wildcards.live} --throttle {params.throttle}"
        " --percentage {params.percentage} --kinds {params.kinds} --sizes {params.sizes} {params.shape} {params.repeats}"
        " --output {output.rows} > {log} 2>&1"
