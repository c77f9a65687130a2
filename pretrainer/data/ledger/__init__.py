"""What was curated and packed, durable: records of chunks, segments of the index, pack windows, pages of them."""
