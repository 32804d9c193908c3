"""The live page: shows the runs below a directory in a browser. It only reads the files of the runs."""
