"""Flights: will it arrive 15 minutes late or more?"""
