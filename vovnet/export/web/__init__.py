"""A page of static files that runs an exported detector in browsers, with ONNX Runtime Web."""

from vovnet.export.web.page import write_web_page

__all__ = ["write_web_page"]
