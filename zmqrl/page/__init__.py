"""The live page: shows the runs below a directory in a browser. The page only reads the files of the runs."""
