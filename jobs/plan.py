"""x"""
import click
@click.command()
def plan(): pass
