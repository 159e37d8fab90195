"""One Locust process' users: their connections, requests and think times."""
