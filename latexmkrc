# latexmk reads the settings of the folder where it is started, which `-cd` does not change.
do './latex/latexmkrc';
