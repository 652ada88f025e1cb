"""What is known of the licences of weights that others published; told once wherever such a file comes in."""

V1_NOTICE = (
    "its authors state no licence that we know of; it was trained on ImageNet "
    "(https://www.image-net.org/download.php), a detector on COCO, too (https://cocodataset.org/#termsofuse), whose "
    "terms are for you to judge"
)
"""For the files of VoVNet.pytorch and maskrcnn-benchmark(-vovnet)."""
V2_NOTICE = (
    "its licence is CC BY-NC 4.0, which forbids commercial use (https://creativecommons.org/licenses/by-nc/4.0/)"
)
"""For the files of vovnet-detectron2."""
