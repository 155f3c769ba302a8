"""The tls transport: `tls://host:port?certificates=/folder`, TLS 1.3 over TCP from the first byte.

The folder has the files that a Kubernetes secret of type tls has, and `tensorbus certs` writes (contexts.py). A dialler
without a folder trusts the authorities of the system, and shows no certificate of its own. connection.py says how the
bytes go.
"""

from broker.transport.registry import register
from broker.transport.tls.transport import TlsTransport

register(TlsTransport())
