"""Data over time: data sets, what a stream is made of, who meets which rows when, arrivals."""
