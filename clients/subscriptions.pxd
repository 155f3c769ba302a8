"""Has subscriptions.py compiled as it is: its calls are cheaper then."""
