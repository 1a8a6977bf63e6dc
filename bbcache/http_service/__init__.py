"""A page of status, metrics and health over HTTP, beside a page service.

It only reads, and knows no secrets; who may see it is a matter of where it listens.
"""
