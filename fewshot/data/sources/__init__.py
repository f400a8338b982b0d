"""Read sources: archives, images, pickles, CSV files and folders of classes, as people have them on disk."""
