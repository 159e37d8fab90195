"""A keep-alive WSGI server on gevent: idle connections cost a socket and one small object each."""
