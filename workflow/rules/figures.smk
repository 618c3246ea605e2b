# Every figure of a platform, in both formats; the main platform's also under their plain names.


rule figure:
    input:
        results=lambda wildcards: results_of(wildcards.platform),
        code=code_of("code/heteroring/results/results.py", *FIGURE_CODE),
    output:
        png=report(
            f"{FIGURES}/{{platform}}/{{name}}.png",
            caption="../report/figure.rst",
            category="Figures",
            subcategory="{platform}",
            labels={"figure": "{name}", "platform": "{platform}"},
        ),
        pdf=f"{FIGURES}/{{platform}}/{{name}}.pdf",
    log:
        f"{LOGS}/figures/{{platform}}/{{name}}.log",
    conda:
        ENVIRONMENT
    params:
        folder=lambda wildcards: folder_of(wildcards.platform),
        name=lambda wildcards: known_figure(wildcards.name),
        shows=lambda wildcards: CATALOG[known_figure(wildcards.name)].shows,
    message:
        "Draw {wildcards.name} for {wildcards.platform}"
    shell:
        "heteroring figure {params.name} --platform-dir {params.folder} --output {output.png} --output {output.pdf}"
        " > {log} 2>&1"


rule main_figure:
    input:
        png=f"{FIGURES}/{PLATFORMS.main}/{{name}}.png",
        pdf=f"{FIGURES}/{PLATFORMS.main}/{{name}}.pdf",
    output:
        png=f"{FIGURES}/{{name}}.png",
        pdf=f"{FIGURES}/{{name}}.pdf",
    log:
        f"{LOGS}/figures/{{name}}.log",
    conda:
        ENVIRONMENT
    message:
        f"Show {{wildcards.name}} of {PLATFORMS.main} as the main figure"
    shell:
        "(cp {input.png} {output.png} && cp {input.pdf} {output.pdf}) > {log} 2>&1"
