"""What clients may ask for, as pydantic models."""
