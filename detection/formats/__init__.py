"""Files of labels of other programs, each read into the lists of COCO JSON.

:func:`vovnet.detection.formats.finding.sources_of` says what a folder or file holds, and
:func:`vovnet.detection.formats.table.read_labels` reads it. Images are looked up, but not decoded.
"""
