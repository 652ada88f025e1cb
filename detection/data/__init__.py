"""Datasets for training and evaluation.

Any object with the following is a dataset here; :class:`vovnet.detection.data.coco.CocoDataset` is that of COCO JSON.

``len(dataset)``
    The number of images.
``dataset[i]``
    ``(image, target)``. The image is a ``tv_tensors.Image``, uint8 (C, H, W), RGB or with as many channels as the model
    takes. The target is a dict of

    - ``boxes``: ``tv_tensors.BoundingBoxes``, float32 (N, 4), x0, y0, x1, y1 in absolute pixels, of the image's size;
    - ``labels``: int64 (N,) in 1..K; 0 is the background, and label k means ``dataset.categories[k - 1]``;
    - ``image_id``: int, different for each image;
    - ``masks``, where there are masks: ``tv_tensors.Mask``, uint8 (N, H, W) of 0 and 1;
    - ``iscrowd``, int64 (N,), and ``area``, float32 (N,) in pixels: optional. Training never sees crowds.
``dataset.categories``
    ``[{"id": int, "name": str}, ...]`` sorted by id; the ids are arbitrary and come back in results.
``dataset.image_size(i)``, optional
    ``(height, width)`` in pixels without decoding the image: wide and high images then come in batches of their own.
``dataset.ground_truth``, optional
    A COCO JSON object (``images``, ``annotations``, ``categories``) to evaluate against; else the targets are used.
``dataset.file_name(i)``, optional
    The image's name for messages.

A dataset is copied into loader processes, so it should open files when it is asked for a sample, not before.
"""
