# Measurements of the ring: one job per setting of the ranks' percentages, interleaving modules, lengths and strategies.


rule bench:
    input:
        models=lambda wildcards: to_split_by(
            model_files(folder_of(wildcards.live)),
            expand(rules.bench.output, live=wildcards.live, setting=wildcards.setting),
        ),
    output:
        rows=f"{DATA}/{{live}}/bench/{{setting}}.csv",
        provenance=f"{DATA}/{{live}}/bench/{{setting}}.json",
    log:
        f"{LOGS}/{{live}}/bench/{{setting}}.log",
    conda:
        ENVIRONMENT
    threads: workflow.cores
    resources:
        machine=1,
    params:
        command=lambda wildcards: command(
            COMMANDS[wildcards.live].bench(
                setting_of(SETTINGS[wildcards.live], wildcards.setting),
                f"{DATA}/{wildcards.live}/models",
                at(rules.bench.output.rows, wildcards),
            )
        ),
    message:
        "Measure the ring on {wildcards.live}: {wildcards.setting}"
    shell:
        "{params.command} > {log} 2>&1"
