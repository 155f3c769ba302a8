"""Has client.py compiled as it is: its calls are cheaper then."""

from clients.publishing.direct cimport publish as publish_directly
