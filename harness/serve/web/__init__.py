"""The HTTP server: application, routes, access control, metrics, page files, start and shutdown.

The page's HTML and scripts are in the folder `harness/serve/page`, the JSON models of requests and
responses in `harness.serve.api`.
"""
