"""locust makes sockets and locks cooperative on import; the tests that share this process must keep theirs."""

import os

os.environ["LOCUST_SKIP_MONKEY_PATCH"] = "1"
