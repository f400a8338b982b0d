"""What knows nothing of few-shot learning: errors, files, random numbers, devices, processes."""
