# The paper: claims judged by the data, numbers as TeX macros, then the PDF. Its text is about the recorded platform.

# Further data for claims and numbers, beside the record: the public study's, short measurements, and predictions.
PUBLISHED, SHORT, PREDICTED = "data/published", "data/h200x2_short", "data/predictions"
# Those of the record, where no others of it are drawn.
OF_RECORD_ALONE = [
    name for name in paper_figures(Path("latex")) if name.startswith("record/") and PAPER not in PLATFORMS.shown
]
EVIDENCE = [str(path) for folder in (PUBLISHED, SHORT, PREDICTED) for path in sorted(Path(folder).glob("*.csv"))]


rule claims:
    input:
        records=paper_records,
        beside=EVIDENCE,
        claims="workflow/claims.yaml",
        code=code_of("workflow/scripts/check_claims.py"),
    output:
        tex=f"{LATEX}/generated/claims.tex",
        html=report(
            f"{FIGURES}/claims.html", caption="../report/claims.rst", category="Claims", labels={"table": "claims"}
        ),
    log:
        f"{LOGS}/claims.log",
    conda:
        ENVIRONMENT
    params:
        folders=f"data/{PAPER} {PUBLISHED} {SHORT} {PREDICTED}",
    message:
        "Judge the claims"
    shell:
        "python workflow/scripts/check_claims.py {params.folders} {input.claims} {output.tex} {output.html} > {log} 2>&1"


# If the paper's record is not shown otherwise, the process that draws the first figure draws its others, too.
rule overview:
    input:
        record=lambda wildcards: results_of(PAPER),
        beside=EVIDENCE,
        code=code_of("workflow/scripts/paper_overview.py", *FIGURE_CODE),
    output:
        pdf=f"{LATEX}/images/overview.pdf",
        record=[f"{LATEX}/images/{name}.pdf" for name in OF_RECORD_ALONE],
        png=report(
            f"{FIGURES}/overview.png",
            caption="../report/overview.rst",
            category="Figures",
            labels={"figure": "overview"},
        ),
    log:
        f"{LOGS}/figures/overview.log",
    conda:
        ENVIRONMENT
    params:
        folders=f"data/{PAPER} {PUBLISHED} {SHORT} {PREDICTED}",
    message:
        "Draw the paper's first figure" + (f", and those of {PAPER}" if OF_RECORD_ALONE else "")
    shell:
        "python workflow/scripts/paper_overview.py {params.folders} {output} > {log} 2>&1"


rule numbers:
    input:
        records=paper_records,
        live=results_of(PLATFORMS.live),
        beside=EVIDENCE,
        code=code_of("workflow/scripts/paper_numbers.py"),
    output:
        tex=f"{LATEX}/generated/numbers.tex",
    log:
        f"{LOGS}/numbers.log",
    conda:
        ENVIRONMENT
    params:
        folders=f"data/{PAPER} {PUBLISHED} {SHORT} {PREDICTED} {folder_of(PLATFORMS.live)}",
    message:
        "Write the paper's numbers"
    shell:
        "python workflow/scripts/paper_numbers.py {params.folders} {output.tex} > {log} 2>&1"


rule paper_image:
    input:
        pdf=lambda wildcards: f"{FIGURES}/{(PAPER_PLATFORMS | EXPERIMENTS)[wildcards.part]}/{wildcards.name}.pdf",
    output:
        pdf=f"{LATEX}/images/{{part}}/{{name}}.pdf",
    log:
        f"{LOGS}/figures/{{part}}/{{name}}.log",
    wildcard_constraints:
        part=one_of(part for part in PAPER_PLATFORMS | EXPERIMENTS if part != "record" or not OF_RECORD_ALONE),
    conda:
        ENVIRONMENT
    message:
        "Put {wildcards.name} of the {wildcards.part} platform into the paper"
    shell:
        "cp {input.pdf} {output.pdf} > {log} 2>&1"


if config["run"]:

    rule paper_source:
        input:
            source="latex/{source_file}",
        output:
            source=f"{LATEX}/{{source_file}}",
        log:
            f"{LOGS}/paper/{{source_file}}.log",
        wildcard_constraints:
            source_file=one_of(PAPER_SOURCES),
        conda:
            ENVIRONMENT
        message:
            "Copy {wildcards.source_file} to the paper of this run"
        shell:
            "cp {input.source} {output.source} > {log} 2>&1"


rule paper:
    input:
        sources=paper_sources,
        made=paper_inputs(),
        check="workflow/scripts/check_latex_log.py",
    output:
        pdf=f"{LATEX}/report.pdf",
    log:
        f"{LOGS}/paper.log",
    conda:
        ENVIRONMENT
    params:
        main=f"{LATEX}/report.tex",
        tex_log=f"{LATEX}/report.log",
    message:
        "Typeset the paper"
    shell:
        # A failed run leaves a state in which latexmk refuses to try again.
        "(latexmk -g -cd {params.main} && python {input.check} {params.tex_log}) > {log} 2>&1"
