"""The server's end: who is there, who is asked and answers, and what outlives the server."""
