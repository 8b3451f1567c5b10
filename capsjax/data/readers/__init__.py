"""Readers, one for each kind of source: archives, folders of images, TFDS."""
