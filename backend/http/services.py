"""The services that handlers use, under typed keys of the application."""

from aiohttp import web

from backend.fetching import PhotoFetcher
from backend.indexing import Indexer
from backend.searching import Searcher
from backend.settings import Settings
from backend.storage.catalog import Catalog

__all__ = ["CATALOG", "FETCHER", "INDEXER", "SEARCHER", "SETTINGS"]

SETTINGS = web.AppKey("settings", Settings)
CATALOG = web.AppKey("catalog", Catalog)
INDEXER = web.AppKey("indexer", Indexer)
SEARCHER = web.AppKey("searcher", Searcher)
FETCHER = web.AppKey("fetcher", PhotoFetcher)
