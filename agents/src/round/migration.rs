//! Migration: copies of experts follow the loads.

use crate::components::{Hosts, Load, Node};
use crate::world::{Batch, Migrations, Roster};
use bevy_ecs::prelude::{Entity, Query, Res, ResMut};

/// Tells the rules of migration what each expert of the layer was asked for. After the last layer of a step they
/// may decide on other hosts: that waits for the shell, and no round sees it before the shell has brought the
/// copies.
pub(super) fn migrate(
    batch: Res<'_, Batch>,
    roster: Res<'_, Roster>,
    experts: Query<'_, '_, (&Load, &Hosts)>,
    nodes: Query<'_, '_, &Node>,
    migrations: Option<ResMut<'_, Migrations>>,
) {
    const KNOWN: &str = "the roster is complete";
    let Some(mut migrations) = migrations else { return };
    let load = |entity: &Entity| experts.get(*entity).expect(KNOWN).0.0;
    let loads: Vec<u32> = roster.experts[batch.layer.index()].iter().map(load).collect();
    if migrations.migrating.absorb(batch.layer, &loads) {
        let hosts = |entity: &Entity| experts.get(*entity).expect(KNOWN).1.0.clone();
        let hosts: Vec<Vec<_>> =
            roster.experts.iter().map(|layer| layer.iter().map(hosts).collect()).collect();
        let available = |entity: &Entity| nodes.get(*entity).expect(KNOWN).available;
        let available: Vec<bool> = roster.nodes.iter().map(available).collect();
        migrations.decided = Some(migrations.migrating.decide(&hosts, &available));
    }
}
