"""Programs that use mtlkernels, and the data sets, metrics and models that they share."""
