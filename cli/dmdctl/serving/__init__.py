"""Serves a generator: a page to draw with and an API, on one port"""
