"""What people have on disk: archives, images, pickles, lists."""
