"""Data: TFRecord files, the input pipeline, the converter and the demo data set."""
