"""The web page: files for a browser, which then speaks REST and follows the events as any client does."""

from retinue.controller.web.page import WebPage

__all__ = ["WebPage"]
