"""parked: very many keep-alive HTTP connections in Python, a server and a load test.

A connection between two requests is *parked*: a socket and one small object, on either side. What users
import is in the faces :mod:`parked.server` and :mod:`parked.user`, and `gunicorn -k` names
:class:`parked.gunicorn.KeepAliveWorker`; everything else may change from one version to the next.
"""

#: Of the whole distribution; pyproject.toml reads it here.
__version__ = "1.0.0"
